output "bucket" {
  description = "Bucket of models and artifacts"
  value       = module.storage.bucket
}

output "dataset" {
  description = "BigQuery dataset"
  value       = module.bigquery.dataset
}

output "repository" {
  description = "Address of the image repository"
  value       = module.artifact_registry.repository
}

output "pipeline_service_account" {
  description = "Account that runs the steps"
  value       = module.iam.pipeline_email
}

output "deployer_service_account" {
  description = "Account that builds and submits"
  value       = module.iam.deployer_email
}
