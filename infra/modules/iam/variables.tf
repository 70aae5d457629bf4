variable "project_id" {
  description = "Project of the accounts"
  type        = string
}

variable "env" {
  description = "Environment, the end of the accounts' names"
  type        = string
}

variable "operators" {
  description = "IAM members that may impersonate both accounts: user:ann@example.com"
  type        = list(string)
}
