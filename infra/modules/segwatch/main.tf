locals {
  is_protected = var.env == "prod"
  labels       = merge(var.labels, { app = "segwatch", env = var.env })
}

module "apis" {
  source = "../apis"

  project_id = var.project_id
  extra_apis = var.extra_apis
}

module "iam" {
  source = "../iam"

  project_id = var.project_id
  env        = var.env
  operators  = var.operators

  depends_on = [module.apis]
}

module "storage" {
  source = "../storage"

  project_id   = var.project_id
  bucket_name  = var.bucket_name
  env          = var.env
  location     = var.region
  labels       = local.labels
  is_protected = local.is_protected
  object_admins = {
    pipeline = module.iam.pipeline_member
    deployer = module.iam.deployer_member
  }
  kms_key_name = var.kms_key_name

  depends_on = [module.apis]
}

module "bigquery" {
  source = "../bigquery"

  project_id        = var.project_id
  dataset_id        = var.dataset_id
  location          = var.region
  labels            = local.labels
  is_protected      = local.is_protected
  dimensions        = var.dimensions
  predictions_table = var.predictions_table
  metric_table      = var.metric_table
  editors           = { pipeline = module.iam.pipeline_member }
  source_datasets   = var.source_datasets
  source_reader     = module.iam.pipeline_member
  kms_key_name      = var.kms_key_name

  depends_on = [module.apis]
}

module "artifact_registry" {
  source = "../artifact_registry"

  project_id   = var.project_id
  env          = var.env
  location     = var.region
  labels       = local.labels
  readers      = { pipeline = module.iam.pipeline_member }
  writers      = { deployer = module.iam.deployer_member }
  kms_key_name = var.kms_key_name

  depends_on = [module.apis]
}

module "budget" {
  source = "../budget"
  count  = var.budget == null ? 0 : 1

  project_id      = var.project_id
  env             = var.env
  billing_account = var.budget.billing_account
  monthly_amount  = var.budget.monthly_amount

  depends_on = [module.apis]
}
