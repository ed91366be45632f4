variable "name" {
  description = "Prefix of everything that is made."
  type        = string
  default     = "refrag"
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "vpc_id" {
  description = "Network of the jobs."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets with a way out (NAT, or endpoints for ECR, S3, Secrets Manager and CloudWatch)."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0
    error_message = "Give at least one subnet."
  }
}

variable "image_tag" {
  description = "Of the images in the repository: <tag>-cpu and <tag>-cuda."
  type        = string
  default     = "latest"
}

variable "cpu_instance_types" {
  description = "Of the CPU queue."
  type        = list(string)
  default     = ["c7i.4xlarge", "m7i.4xlarge"]
}

variable "gpu_instance_types" {
  description = "Of the GPU queue, one job on one node."
  type        = list(string)
  default     = ["g6.xlarge", "g6.2xlarge"]
}

variable "multinode_instance_type" {
  description = "Of multi-node jobs: one type, since all nodes have to be alike."
  type        = string
  default     = "g6.12xlarge"
}

variable "gpus_per_node" {
  description = "GPUs of a node of a multi-node job; processes of it, too."
  type        = number
  default     = 4
}

variable "nodes" {
  description = "Nodes of the multi-node job definition."
  type        = number
  default     = 2

  validation {
    condition     = var.nodes >= 2
    error_message = "A multi-node job has two nodes or more."
  }
}

variable "max_vcpus" {
  description = "Most vCPUs that an environment may start; jobs wait above it."
  type        = number
  default     = 256
}
