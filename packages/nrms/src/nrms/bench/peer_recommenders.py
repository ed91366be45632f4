"""Time ``recommenders`` 1.2.1 (TensorFlow); run by the Python of an environment of its own, it knows nothing of nrms.

Arguments: data folder, training steps, 1 to evaluate, words. Prints one JSON object on its last line.
"""

import json
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

from recommenders.models.newsrec.io.mind_iterator import MINDIterator  # noqa: E402
from recommenders.models.newsrec.models.nrms import NRMSModel  # noqa: E402
from recommenders.models.newsrec.newsrec_utils import prepare_hparams  # noqa: E402


class JsonIterator(MINDIterator):  # type: ignore[misc]  # its package is not here when types are checked
    """Reads its dictionaries from JSON instead of pickles."""

    def load_dict(self, file_path: str) -> dict[str, int]:
        """Read a dictionary."""
        held: dict[str, int] = json.loads(Path(file_path).read_text())
        return held


def main() -> None:
    """Time training steps and, if asked, a whole evaluation."""
    folder, steps, evaluates = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
    home = Path(tempfile.mkdtemp())
    words: dict[str, int] = {}
    for line in (folder / "train" / "news.tsv").read_text().splitlines():
        for word in re.findall(r"[\w]+|[.,!?;|]", line.split("\t")[3].lower()):
            words.setdefault(word, len(words) + 1)
    users: dict[str, int] = {}
    for line in (folder / "train" / "behaviors.tsv").read_text().splitlines():
        users.setdefault(line.split("\t")[1], len(users) + 1)
    (home / "words").write_text(json.dumps(words))
    (home / "users").write_text(json.dumps(users))
    np.save(home / "vectors.npy", np.random.default_rng(0).uniform(-0.1, 0.1, (len(words) + 1, 300)).astype("f4"))
    settings = home / "nrms.yaml"
    settings.write_text(
        "data:\n  title_size: 30\n  his_size: 50\n  data_format: news\n  npratio: 4\n"
        "model:\n  model_type: nrms\n  word_emb_dim: 300\n  head_num: 20\n  head_dim: 20\n  attention_hidden_dim: 200\n"
        "  dropout: 0.2\n  loss: cross_entropy_loss\n"
        "train:\n  batch_size: 32\n  epochs: 1\n  learning_rate: 0.0001\n  optimizer: adam\n  show_step: 100000\n"
        "  support_quick_scoring: true\n  metrics: [group_auc, mean_mrr, ndcg@5;10]\n"
        "info:\n  show_step: 100000\n  metrics: [group_auc, mean_mrr, ndcg@5;10]\n"
    )
    hparams = prepare_hparams(
        str(settings),
        wordEmb_file=str(home / "vectors.npy"),
        wordDict_file=str(home / "words"),
        userDict_file=str(home / "users"),
        batch_size=32,
        epochs=1,
        show_step=100000,
    )
    model = NRMSModel(hparams, JsonIterator, seed=0)
    train = str(folder / "train" / "news.tsv"), str(folder / "train" / "behaviors.tsv")
    batches = model.train_iterator.load_data_from_file(*train)
    for _ in range(3):
        model.train(next(batches))
    began, count = time.process_time(), 0
    for _ in range(steps):
        batch = next(batches)
        count += len(batch["labels"])
        model.train(batch)
    found = {"train": count / (time.process_time() - began), "evaluate": 0.0}
    if evaluates:
        dev = str(folder / "dev" / "news.tsv"), str(folder / "dev" / "behaviors.tsv")
        impressions = len((folder / "dev" / "behaviors.tsv").read_text().splitlines())
        began = time.process_time()
        model.run_eval(*dev)
        found["evaluate"] = impressions / (time.process_time() - began)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
