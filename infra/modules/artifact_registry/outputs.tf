output "repository" {
  description = "Address of the repository, in front of an image's name"
  value = join("/", [
    "${google_artifact_registry_repository.images.location}-docker.pkg.dev",
    var.project_id,
    google_artifact_registry_repository.images.repository_id,
  ])
}
