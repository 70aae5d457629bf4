variable "project_id" {
  description = "Project of the repository"
  type        = string
}

variable "env" {
  description = "Environment, the end of the repository's name"
  type        = string
}

variable "location" {
  description = "Region of the repository"
  type        = string
}

variable "labels" {
  description = "Labels of the repository"
  type        = map(string)
}

variable "readers" {
  description = "Members that may pull images; the keys only tell them apart"
  type        = map(string)
}

variable "writers" {
  description = "Members that may push images; the keys only tell them apart"
  type        = map(string)
}

variable "image_days" {
  description = "Age in days at which an image is deleted"
  type        = number
  default     = 90
}

variable "keep_images" {
  description = "Latest images that are kept whatever their age"
  type        = number
  default     = 10
}

variable "kms_key_name" {
  description = "Cloud KMS key that encrypts the images; null: Google's own"
  type        = string
}
