output "enabled" {
  description = "APIs that are enabled"
  value       = sort([for api in google_project_service.needed : api.service])
}
