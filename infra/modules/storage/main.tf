resource "google_storage_bucket" "segwatch" {
  #checkov:skip=CKV_GCP_62:Access is recorded by Cloud Audit Logs; a bucket of access logs would need a second bucket.
  project                     = var.project_id
  name                        = "${var.bucket_name}-${var.env}"
  location                    = var.location
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = !var.is_protected
  labels                      = var.labels

  versioning {
    enabled = true
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age            = var.temporary_days
      matches_prefix = var.temporary_prefixes
    }
  }

  # A model overwritten or removed by mistake can be brought back for this long.
  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      days_since_noncurrent_time = var.noncurrent_days
      with_state                 = "ARCHIVED"
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 7
    }
  }

  dynamic "encryption" {
    for_each = var.kms_key_name == null ? [] : [var.kms_key_name]
    content {
      default_kms_key_name = encryption.value
    }
  }
}

# On this bucket only: neither account can see another one of the project.
resource "google_storage_bucket_iam_member" "object_admin" {
  for_each = var.object_admins

  bucket = google_storage_bucket.segwatch.name
  role   = "roles/storage.objectAdmin"
  member = each.value
}

# storage.buckets.get: clients ask where the bucket is before they write to it, and objectAdmin does not hold it.
resource "google_storage_bucket_iam_member" "bucket_reader" {
  for_each = var.object_admins

  bucket = google_storage_bucket.segwatch.name
  role   = "roles/storage.legacyBucketReader"
  member = each.value
}
