variable "project_id" {
  description = "Google Cloud project, one for each environment"
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "A project's id has 6 to 30 small letters, digits and hyphens."
  }
}

variable "bucket_name" {
  description = "Start of the bucket's name, unique in the world; the environment is put behind it"
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9_-]{2,57}$", var.bucket_name))
    error_message = "Write 3 to 58 small letters, digits, hyphens and underscores, without gs://."
  }
}

variable "region" {
  description = "Region of everything: the dataset, the bucket, the images and the jobs must be in the same one"
  type        = string
  default     = "us-central1"
}

variable "dataset_id" {
  description = "BigQuery dataset, as in the target's warehouse: bigquery://PROJECT/DATASET"
  type        = string
  default     = "anomaly_detection"
}

variable "dimensions" {
  description = "Dimensions of all metrics of the settings, each once, in order"
  type        = list(string)
  default     = ["country_code", "platform", "channel"]
}

variable "predictions_table" {
  description = "Table that predictions are written to, as predictions_table in the settings"
  type        = string
  default     = "predictions"
}

variable "metric_table" {
  description = "Table of the generated metric; null makes none, where the metric is a table of your own"
  type        = string
  default     = "new_users_metrics"
}

variable "source_datasets" {
  description = "Other datasets of the project that hold metrics; the pipeline may read them"
  type        = list(string)
  default     = []
}

variable "operators" {
  description = "IAM members that may use both accounts by short-lived tokens: user:ann@example.com"
  type        = list(string)
  default     = []
}

variable "labels" {
  description = "Labels besides app and env"
  type        = map(string)
  default     = {}
}

variable "extra_apis" {
  description = "APIs enabled besides those that segwatch always needs"
  type        = list(string)
  default     = []
}

variable "kms_key_name" {
  description = "Cloud KMS key of the same region that encrypts bucket, dataset and images; null: Google's own"
  type        = string
  default     = null
}

variable "budget" {
  description = "Monthly budget that mails at 50, 90 and 100 %; null: none"
  type = object({
    billing_account = string
    monthly_amount  = number
  })
  default = null
}
