# The API of services itself (serviceusage) is on in every new project.
# Not compute: the steps run in Vertex AI's own machines, and enabling it makes a default network and an account
# with the role of an editor.
locals {
  needed = [
    "aiplatform.googleapis.com",
    "artifactregistry.googleapis.com",
    "bigquery.googleapis.com",
    "bigquerystorage.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "logging.googleapis.com",
    "storage.googleapis.com",
  ]
}

resource "google_project_service" "needed" {
  for_each = toset(concat(local.needed, var.extra_apis))

  project = var.project_id
  service = each.value
  # Other things in the project may use them by then.
  disable_on_destroy = false
}
