variable "project_id" {
  description = "Project of the dataset"
  type        = string
}

variable "dataset_id" {
  description = "Name of the dataset"
  type        = string
}

variable "location" {
  description = "Region of the dataset; it cannot be changed later"
  type        = string
}

variable "labels" {
  description = "Labels of the dataset and its tables"
  type        = map(string)
}

variable "is_protected" {
  description = "Whether Terraform refuses to destroy the tables"
  type        = bool
}

variable "dimensions" {
  description = "Dimensions of all metrics of the settings: a column each in the predictions table"
  type        = list(string)

  validation {
    condition     = length(var.dimensions) > 0 && length(var.dimensions) == length(distinct(var.dimensions))
    error_message = "Name each dimension of the settings once."
  }
}

variable "predictions_table" {
  description = "Table that predictions are written to, as predictions_table in the settings"
  type        = string
}

variable "metric_table" {
  description = "Table of the generated metric; null makes none, where the metric is a table of your own"
  type        = string
}

variable "editors" {
  description = "Members that may read and write the dataset; the keys only tell them apart"
  type        = map(string)
}

variable "source_datasets" {
  description = "Other datasets of the project that hold metrics"
  type        = list(string)
}

variable "source_reader" {
  description = "Member that may read them"
  type        = string
}

variable "kms_key_name" {
  description = "Cloud KMS key that encrypts the tables; null: Google's own"
  type        = string
}
