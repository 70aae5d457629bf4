# Warns and stops nothing. Mails go to the billing account's administrators and users.
data "google_project" "watched" {
  project_id = var.project_id
}

resource "google_project_service" "budgets" {
  project            = var.project_id
  service            = "billingbudgets.googleapis.com"
  disable_on_destroy = false
}

resource "google_billing_budget" "monthly" {
  billing_account = var.billing_account
  display_name    = "segwatch ${var.env}"

  budget_filter {
    projects = ["projects/${data.google_project.watched.number}"]
  }

  amount {
    specified_amount {
      units = tostring(var.monthly_amount)
    }
  }

  dynamic "threshold_rules" {
    for_each = [0.5, 0.9, 1]
    content {
      threshold_percent = threshold_rules.value
    }
  }

  depends_on = [google_project_service.budgets]
}
