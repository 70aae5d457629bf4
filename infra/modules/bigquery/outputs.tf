output "dataset" {
  description = "Name of the dataset"
  value       = google_bigquery_dataset.segwatch.dataset_id
}
