variable "project_id" {
  description = "Project whose costs are watched"
  type        = string
}

variable "env" {
  description = "Environment, for the budget's name"
  type        = string
}

variable "billing_account" {
  description = "Id of the billing account that pays for the project"
  type        = string
}

variable "monthly_amount" {
  description = "Whole units of the billing account's currency per month"
  type        = number
}
