# Nodes of one job talk to each other on any port (torchrun, NCCL); nobody else reaches them.
resource "aws_security_group" "jobs" {
  name        = "${var.name}-jobs"
  description = "Batch jobs: open to each other only"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "each_other" {
  security_group_id            = aws_security_group.jobs.id
  referenced_security_group_id = aws_security_group.jobs.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "out" {
  security_group_id = aws_security_group.jobs.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_placement_group" "nodes" {
  name     = "${var.name}-nodes"
  strategy = "cluster"
}
