variable "project_id" {
  description = "Project of the bucket"
  type        = string
}

variable "bucket_name" {
  description = "Start of the bucket's name, unique in the world; the environment is put behind it"
  type        = string
}

variable "env" {
  description = "Environment, the end of the bucket's name"
  type        = string
}

variable "location" {
  description = "Region of the bucket, the same as the dataset's"
  type        = string
}

variable "labels" {
  description = "Labels of the bucket"
  type        = map(string)
}

variable "is_protected" {
  description = "Whether a bucket that holds objects cannot be destroyed"
  type        = bool
}

variable "object_admins" {
  description = "Members that may read and write objects; the keys only tell them apart"
  type        = map(string)
}

variable "temporary_prefixes" {
  description = "Prefixes of objects that nobody needs for long; never one under which models are kept"
  type        = list(string)
  default     = ["tmp/", "builds/"]

  validation {
    condition     = length(var.temporary_prefixes) > 0 && alltrue([for prefix in var.temporary_prefixes : length(prefix) > 1])
    error_message = "An empty list or prefix would match every object, models too."
  }
}

variable "temporary_days" {
  description = "Age in days at which temporary objects are deleted"
  type        = number
  default     = 14
}

variable "noncurrent_days" {
  description = "Days for which an overwritten or deleted object can be brought back"
  type        = number
  default     = 30
}

variable "kms_key_name" {
  description = "Cloud KMS key that encrypts the objects; null: Google's own"
  type        = string
}
