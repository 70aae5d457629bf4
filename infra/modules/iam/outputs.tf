output "pipeline_email" {
  description = "Account that runs the steps"
  value       = google_service_account.pipeline.email
}

output "pipeline_member" {
  description = "The same as a member of a policy"
  value       = google_service_account.pipeline.member
}

output "deployer_email" {
  description = "Account that builds and submits"
  value       = google_service_account.deployer.email
}

output "deployer_member" {
  description = "The same as a member of a policy"
  value       = google_service_account.deployer.member
}
