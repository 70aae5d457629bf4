# Two accounts without keys. What they may do to one bucket, dataset or repository is granted on that thing, in its
# own module; here are only the roles that Google grants on a whole project or on an account.
locals {
  pipeline_roles = toset([
    "roles/aiplatform.user",          # registers models, and reports the steps' metadata
    "roles/bigquery.jobUser",         # runs queries; reading a table still needs a role on its dataset
    "roles/bigquery.readSessionUser", # reads tables through the Storage API; exists on projects only
    "roles/logging.logWriter",        # writes the steps' logs
  ])
  deployer_roles = toset([
    "roles/aiplatform.user",                   # submits pipelines and sets schedules
    "roles/cloudbuild.builds.editor",          # submits builds
    "roles/logging.logWriter",                 # writes the builds' logs
    "roles/serviceusage.serviceUsageConsumer", # lets its calls count against the project's quota
  ])
}

resource "google_service_account" "pipeline" {
  project      = var.project_id
  account_id   = "segwatch-pipeline-${var.env}"
  display_name = "segwatch pipeline (${var.env})"
  description  = "Runs the steps: reads the metric, writes predictions and models"
}

resource "google_service_account" "deployer" {
  project      = var.project_id
  account_id   = "segwatch-deployer-${var.env}"
  display_name = "segwatch deployer (${var.env})"
  description  = "Builds the image, submits pipelines and sets their schedules"
}

resource "google_project_iam_member" "pipeline" {
  for_each = local.pipeline_roles

  project = var.project_id
  role    = each.value
  member  = google_service_account.pipeline.member
}

resource "google_project_iam_member" "deployer" {
  #checkov:skip=CKV_GCP_49:No narrower role submits builds; each one runs as the deployer itself, whose roles are these.
  for_each = local.deployer_roles

  project = var.project_id
  role    = each.value
  member  = google_service_account.deployer.member
}

# Whoever starts a pipeline that runs as another account must be allowed to act as it; the same holds for a build.
resource "google_service_account_iam_member" "deployer_acts_as" {
  for_each = {
    pipeline = google_service_account.pipeline.name
    deployer = google_service_account.deployer.name
  }

  service_account_id = each.value
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.deployer.member
}

# People use the accounts by short-lived tokens in place of keys.
resource "google_service_account_iam_member" "operator_of_pipeline" {
  for_each = toset(var.operators)

  service_account_id = google_service_account.pipeline.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.value
}

resource "google_service_account_iam_member" "operator_of_deployer" {
  for_each = toset(var.operators)

  service_account_id = google_service_account.deployer.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.value
}
