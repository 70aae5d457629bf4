terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
  }
  # The bucket and the prefix of the state come from `make infra-init`.
  backend "gcs" {}
}

provider "google" {
  project = var.project_id
  region  = var.region
  # Calls count against this project whoever makes them; the API of budgets refuses user credentials otherwise.
  user_project_override = true
  billing_project       = var.project_id
}

module "segwatch" {
  source = "../../modules/segwatch"

  env               = "test"
  project_id        = var.project_id
  bucket_name       = var.bucket_name
  region            = var.region
  dataset_id        = var.dataset_id
  dimensions        = var.dimensions
  predictions_table = var.predictions_table
  metric_table      = var.metric_table
  source_datasets   = var.source_datasets
  operators         = var.operators
  labels            = var.labels
  extra_apis        = var.extra_apis
  kms_key_name      = var.kms_key_name
  budget            = var.budget
}
