output "bucket" {
  description = "Bucket of models and artifacts"
  value       = module.segwatch.bucket
}

output "dataset" {
  description = "BigQuery dataset"
  value       = module.segwatch.dataset
}

output "repository" {
  description = "Address of the image repository"
  value       = module.segwatch.repository
}

output "pipeline_service_account" {
  description = "Account that runs the steps"
  value       = module.segwatch.pipeline_service_account
}

output "deployer_service_account" {
  description = "Account that builds and submits"
  value       = module.segwatch.deployer_service_account
}
