"""Run ``recommenders`` 1.2.1 (TensorFlow) with the Python of an environment of its own; it knows nothing of nrms.

Arguments: data folder, and a JSON object. With ``epochs`` it trains and evaluates; else it times ``steps`` of training
and, if ``evaluate`` is true, an evaluation. Prints one JSON object on its last line.
"""

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

from recommenders.models.newsrec.io.mind_iterator import MINDIterator  # noqa: E402
from recommenders.models.newsrec.models.nrms import NRMSModel  # noqa: E402
from recommenders.models.newsrec.newsrec_utils import prepare_hparams  # noqa: E402

METRICS = "[group_auc, mean_mrr, ndcg@5;10]"


class JsonIterator(MINDIterator):  # type: ignore[misc]  # its package is not here when types are checked
    """Reads its dictionaries from JSON instead of pickles."""

    def load_dict(self, file_path: str) -> dict[str, int]:
        """Read a dictionary."""
        held: dict[str, int] = json.loads(Path(file_path).read_text())
        return held


def make_model(folder: Path, home: Path, given: dict[str, Any]) -> Any:
    """Their model over the words and users of the train part."""
    words: dict[str, int] = {}
    for line in (folder / "train" / "news.tsv").read_text().splitlines():
        for word in re.findall(r"[\w]+|[.,!?;|]", line.split("\t")[3].lower()):
            words.setdefault(word, len(words) + 1)
    users: dict[str, int] = {}
    for line in (folder / "train" / "behaviors.tsv").read_text().splitlines():
        users.setdefault(line.split("\t")[1], len(users) + 1)
    (home / "words").write_text(json.dumps(words))
    (home / "users").write_text(json.dumps(users))
    vectors = np.random.default_rng(given["seed"]).uniform(-0.1, 0.1, (len(words) + 1, given["words"]))
    np.save(home / "vectors.npy", vectors.astype("f4"))
    settings = home / "nrms.yaml"
    settings.write_text(
        f"data:\n  title_size: {given['title']}\n  his_size: 50\n  data_format: news\n  npratio: 4\n"
        f"model:\n  model_type: nrms\n  word_emb_dim: {given['words']}\n  head_num: {given['heads']}\n"
        f"  head_dim: {given['head_dim']}\n  attention_hidden_dim: {given['query']}\n"
        "  dropout: 0.2\n  loss: cross_entropy_loss\n"
        f"train:\n  batch_size: {given['batch']}\n  epochs: 1\n  learning_rate: {given['rate']}\n  optimizer: adam\n"
        f"  show_step: 100000\n  support_quick_scoring: true\n  metrics: {METRICS}\n"
        f"info:\n  show_step: 100000\n  metrics: {METRICS}\n"
    )
    hparams = prepare_hparams(
        str(settings),
        wordEmb_file=str(home / "vectors.npy"),
        wordDict_file=str(home / "words"),
        userDict_file=str(home / "users"),
        batch_size=given["batch"],
        epochs=1,
        show_step=100000,
    )
    return NRMSModel(hparams, JsonIterator, seed=given["seed"])


def learn(model: Any, folder: Path, epochs: int) -> dict[str, float]:
    """Train for some epochs, then evaluate once."""
    began = time.process_time()
    for _ in range(epochs):
        for batch in model.train_iterator.load_data_from_file(*files(folder, "train")):
            model.train(batch)
    found = model.run_eval(*files(folder, "dev"))
    spent = time.process_time() - began
    return {"auc": float(found["group_auc"]), "ndcg@10": float(found["ndcg@10"]), "cpu": spent}


def work(model: Any, folder: Path, steps: int, evaluates: bool) -> dict[str, float]:
    """Samples per CPU-second of training, impressions per CPU-second of evaluation (0 if not asked for)."""
    batches = model.train_iterator.load_data_from_file(*files(folder, "train"))
    for _ in range(3):
        model.train(next(batches))
    began, count = time.process_time(), 0
    for _ in range(steps):
        batch = next(batches)
        count += len(batch["labels"])
        model.train(batch)
    found = {"train": count / (time.process_time() - began), "evaluate": 0.0}
    if evaluates:
        impressions = len((folder / "dev" / "behaviors.tsv").read_text().splitlines())
        began = time.process_time()
        model.run_eval(*files(folder, "dev"))
        found["evaluate"] = impressions / (time.process_time() - began)
    return found


def files(folder: Path, part: str) -> tuple[str, str]:
    """The catalogue and the log of a part."""
    return str(folder / part / "news.tsv"), str(folder / part / "behaviors.tsv")


def main() -> None:
    """Do what the arguments say."""
    folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    with tempfile.TemporaryDirectory() as home:
        model = make_model(folder, Path(home), given)
        if "epochs" in given:
            found = learn(model, folder, given["epochs"])
        else:
            found = work(model, folder, given["steps"], given["evaluate"])
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
