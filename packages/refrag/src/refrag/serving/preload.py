"""What every worker needs: the process from which workers start imports this once, so that they start in no time."""

from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertModel, LlamaForCausalLM

from refrag.serving.worker import ProcessWorker

__all__ = ["AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "BertModel", "LlamaForCausalLM", "ProcessWorker"]
