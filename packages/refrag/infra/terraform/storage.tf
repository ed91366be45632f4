# Code overlays and what runs leave.
resource "aws_s3_bucket" "work" {
  bucket_prefix = "${var.name}-work-"
}

resource "aws_s3_bucket_public_access_block" "work" {
  bucket                  = aws_s3_bucket.work.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "work" {
  bucket = aws_s3_bucket.work.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "work" {
  bucket = aws_s3_bucket.work.id

  rule {
    id     = "overlays"
    status = "Enabled"

    filter {
      prefix = "refrag/overlays/"
    }

    expiration {
      days = 30
    }
  }
}

resource "aws_ecr_repository" "images" {
  name                 = var.name
  image_tag_mutability = "IMMUTABLE"

  image_scanning_configuration {
    scan_on_push = true
  }
}

# The value is put in by hand (aws secretsmanager put-secret-value): it is in no file and no state.
resource "aws_secretsmanager_secret" "hf_token" {
  name        = "${var.name}/hf-token"
  description = "HF_TOKEN, for gated models only"
}

resource "aws_cloudwatch_log_group" "jobs" {
  name              = "/aws/batch/${var.name}"
  retention_in_days = 30
}
