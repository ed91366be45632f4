locals {
  # Multi-node jobs are not supported on Spot instances: theirs are on demand, close together, and all alike.
  environments = {
    cpu       = { kind = "SPOT", instances = var.cpu_instance_types, placement = null }
    gpu       = { kind = "SPOT", instances = var.gpu_instance_types, placement = null }
    multinode = { kind = "EC2", instances = [var.multinode_instance_type], placement = aws_placement_group.nodes.name }
  }
  image = {
    cpu  = "${aws_ecr_repository.images.repository_url}:${var.image_tag}-cpu"
    cuda = "${aws_ecr_repository.images.repository_url}:${var.image_tag}-cuda"
  }
  common = {
    jobRoleArn       = aws_iam_role.job.arn
    executionRoleArn = aws_iam_role.execution.arn
    secrets          = [{ name = "HF_TOKEN", valueFrom = aws_secretsmanager_secret.hf_token.arn }]
    logConfiguration = {
      logDriver = "awslogs"
      options   = { "awslogs-group" = aws_cloudwatch_log_group.jobs.name }
    }
  }
}

resource "aws_batch_compute_environment" "this" {
  for_each = local.environments

  compute_environment_name_prefix = "${var.name}-${each.key}-"
  type                            = "MANAGED"
  service_role                    = aws_iam_role.service.arn

  compute_resources {
    type                = each.value.kind
    allocation_strategy = each.value.kind == "SPOT" ? "SPOT_PRICE_CAPACITY_OPTIMIZED" : "BEST_FIT_PROGRESSIVE"
    instance_role       = aws_iam_instance_profile.machine.arn
    instance_type       = each.value.instances
    placement_group     = each.value.placement
    min_vcpus           = 0
    max_vcpus           = var.max_vcpus
    security_group_ids  = [aws_security_group.jobs.id]
    subnets             = var.subnet_ids
  }

  depends_on = [aws_iam_role_policy_attachment.service]

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_batch_job_queue" "this" {
  for_each = local.environments

  name     = "${var.name}-${each.key}-job-queue"
  state    = "ENABLED"
  priority = 1

  compute_environment_order {
    order               = 1
    compute_environment = aws_batch_compute_environment.this[each.key].arn
  }
}

resource "aws_batch_job_definition" "single" {
  for_each = {
    cpu = { image = local.image.cpu, needs = { VCPU = "8", MEMORY = "30000" } }
    gpu = { image = local.image.cuda, needs = { VCPU = "4", MEMORY = "15000", GPU = "1" } }
  }

  name = "${var.name}-${each.key}"
  type = "container"

  container_properties = jsonencode(merge(local.common, {
    image                = each.value.image
    command              = ["refrag", "run", "app=hello_dist"]
    resourceRequirements = [for kind, value in each.value.needs : { type = kind, value = value }]
  }))

  retry_strategy {
    attempts = 2 # a Spot instance may be taken away
  }

  timeout {
    attempt_duration_seconds = 86400
  }
}

resource "aws_batch_job_definition" "multinode" {
  name = "${var.name}-multinode"
  type = "multinode"

  node_properties = jsonencode({
    mainNode = 0
    numNodes = var.nodes
    nodeRangeProperties = [{
      targetNodes = "0:"
      container = merge(local.common, {
        image        = local.image.cuda
        command      = ["refrag", "run", "app=hello_dist"]
        instanceType = var.multinode_instance_type
        resourceRequirements = [
          { type = "VCPU", value = "44" },
          { type = "MEMORY", value = "170000" },
          { type = "GPU", value = tostring(var.gpus_per_node) },
        ]
        linuxParameters = { sharedMemorySize = 16384 } # MiB, for NCCL and data loaders
        ulimits         = [{ name = "memlock", softLimit = -1, hardLimit = -1 }]
      })
    }]
  })

  timeout {
    attempt_duration_seconds = 259200
  }
}
