variable "project_id" {
  description = "Project whose APIs are enabled"
  type        = string
}

variable "extra_apis" {
  description = "APIs enabled besides those that segwatch always needs"
  type        = list(string)
  default     = []
}
