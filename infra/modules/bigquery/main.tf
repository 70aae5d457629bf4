resource "google_bigquery_dataset" "segwatch" {
  project                    = var.project_id
  dataset_id                 = var.dataset_id
  location                   = var.location
  description                = "Metrics that segwatch watches, and its predictions"
  delete_contents_on_destroy = !var.is_protected
  labels                     = var.labels

  dynamic "default_encryption_configuration" {
    for_each = var.kms_key_name == null ? [] : [var.kms_key_name]
    content {
      kms_key_name = default_encryption_configuration.value
    }
  }
}

# Tables inherit the dataset's key.
resource "google_bigquery_table" "predictions" {
  #checkov:skip=CKV_GCP_80:Encrypted by the dataset's key, which is optional: kms_key_name.
  project             = var.project_id
  dataset_id          = google_bigquery_dataset.segwatch.dataset_id
  table_id            = var.predictions_table
  description         = "What segwatch made of each segment and period"
  schema              = jsonencode(local.predictions_schema)
  clustering          = ["metric", "segment_id"]
  deletion_protection = var.is_protected
  labels              = merge(var.labels, local.mark)

  require_partition_filter = true
  time_partitioning {
    type  = "DAY"
    field = "ts"
  }

  lifecycle {
    # segwatch adds a column for each dimension that the settings get later.
    ignore_changes = [schema]
  }
}

resource "google_bigquery_table" "metric" {
  #checkov:skip=CKV_GCP_80:Encrypted by the dataset's key, which is optional: kms_key_name.
  for_each = local.metric_tables

  project             = var.project_id
  dataset_id          = google_bigquery_dataset.segwatch.dataset_id
  table_id            = each.key
  description         = "Made by segwatch: ${each.key}"
  schema              = jsonencode(each.value.schema)
  clustering          = each.value.clustering
  deletion_protection = var.is_protected
  labels              = merge(var.labels, local.mark)

  time_partitioning {
    type  = "DAY"
    field = "created_at"
  }
}

resource "google_bigquery_dataset_iam_member" "editor" {
  for_each = var.editors

  project    = var.project_id
  dataset_id = google_bigquery_dataset.segwatch.dataset_id
  role       = "roles/bigquery.dataEditor"
  member     = each.value
}

# Metrics in datasets of the same project that segwatch may read and not change.
resource "google_bigquery_dataset_iam_member" "source_viewer" {
  for_each = toset(var.source_datasets)

  project    = var.project_id
  dataset_id = each.value
  role       = "roles/bigquery.dataViewer"
  member     = var.source_reader
}
