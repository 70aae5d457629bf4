# The columns come from the files that segwatch itself makes its tables from, so the two cannot drift apart.
locals {
  schemas           = "${path.module}/../../../src/segwatch/data"
  metric_schema     = jsondecode(file("${local.schemas}/schema.json"))
  labels_schema     = jsondecode(file("${local.schemas}/labels_schema.json"))
  predictions_fixed = jsondecode(file("${local.schemas}/predictions_schema.json"))
  after_level       = index(local.predictions_fixed[*].name, "level") + 1
  dimension_columns = [for name in var.dimensions : { name = name, type = "STRING", mode = "NULLABLE" }]
  predictions_schema = concat(
    slice(local.predictions_fixed, 0, local.after_level),
    local.dimension_columns,
    slice(local.predictions_fixed, local.after_level, length(local.predictions_fixed)),
  )

  # segwatch takes a table for its own by this label (warehouses/bigquery.py), here as in `segwatch create`. Without
  # it, `segwatch data truncate` and `segwatch destroy` leave the tables alone. The dataset has none: it is Terraform's.
  mark = { segwatch = "1" }

  # The generated metric, for a first try; a metric of your own stays where it is.
  metric_tables = var.metric_table == null ? {} : {
    (var.metric_table) = {
      schema     = local.metric_schema
      clustering = var.dimensions
    }
    "${var.metric_table}_labels" = {
      schema     = local.labels_schema
      clustering = ["event_id"]
    }
  }
}
