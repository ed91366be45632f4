output "queues" {
  description = "For --queue and env.job_queue."
  value       = { for key, queue in aws_batch_job_queue.this : key => queue.name }
}

output "job_definitions" {
  description = "For env.job_definition."
  value = merge(
    { for key, definition in aws_batch_job_definition.single : key => definition.name },
    { multinode = aws_batch_job_definition.multinode.name },
  )
}

output "repository" {
  description = "Where images are pushed."
  value       = aws_ecr_repository.images.repository_url
}

output "bucket" {
  description = "For --overlay and env.overlay."
  value       = aws_s3_bucket.work.bucket
}

output "hf_token_secret" {
  description = "For --secret-arn."
  value       = aws_secretsmanager_secret.hf_token.arn
}
