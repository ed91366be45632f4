"""What every worker needs, loaded once: the process from which workers start imports this, and they start in no time."""

from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertModel, LlamaForCausalLM

from refrag.serving.worker import ProcessWorker

__all__ = ["AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "BertModel", "LlamaForCausalLM", "ProcessWorker"]
