"""What tables of tracked runs look like in each format."""

import csv
import io
import re
from itertools import product
from typing import Any

import pytest
from lr_relax.study.report import FORMATS, render
from made_results import record

# Relaxation's seeds choose differently; focal has no validation runs. The test numbers are exact in binary.
RUNS = [
    *(record(0.921875, 0.03125, loss_name="cross_entropy", seed=seed, test_run=True) for seed in (0, 1, 2)),
    *(record(0.9, 0.02 + alpha / 10, alpha=alpha, seed=seed) for alpha, seed in product((0.1, 0.2), (0, 1))),
    record(0.9, 0.04, alpha=0.2, seed=2),
    record(0.90625, 0.015625, alpha=0.1, seed=0, test_run=True),
    record(0.9375, 0.03125, alpha=0.2, seed=2, test_run=True),
    *(
        record(accuracy, 0.25, loss_name="focal", alpha=2, seed=seed, test_run=True)
        for accuracy, seed in ((0.875, 0), (0.90625, 1))
    ),
]
CODE = {"dataset_name": "fashion_mnist", "model_name": "simple_dense", "loss_name": "cross_entropy"}
CODE |= {"alpha": 0.0, "chosen_for": None, "temp_scaling": False, "epochs": 50, "seeds": 3}
CODE |= {"accuracy": 0.91, "accuracy_std": None, "ece": 0.1291, "ece_std": 0.01}
CODE |= {"source": "100 % of the paper's_code"}

MARKDOWN = """\
### fashion_mnist, simple_dense, 10 epochs: alpha optimized for accuracy

| loss             |    alpha | seeds |            accuracy |                 ECE | accuracy [1] |       ECE [1] |
|:-----------------|---------:|------:|--------------------:|--------------------:|-------------:|--------------:|
| cross-entropy    |        — |     3 | **0.9219 ± 0.0000** |     0.0312 ± 0.0000 |         0.91 | 0.1291 ± 0.01 |
| label relaxation | 0.1, 0.2 |     2 | **0.9219 ± 0.0221** | **0.0234 ± 0.0110** |            — |             — |
| focal            |       2† |     2 |     0.8906 ± 0.0221 |     0.2500 ± 0.0000 |            — |             — |

- Test data; mean ± sample standard deviation over seeds (validated ones if alpha was chosen).
- † Not chosen: this loss has no validation runs.
- [1] 100 % of the paper's_code, 50 epochs, 3 seeds.
"""  # noqa: E501

LATEX = r"""\begin{table}
  \centering
  \caption{fashion\_mnist, simple\_dense, 10 epochs: alpha optimized for accuracy}
  \begin{tabular}{lrrrrrr}
    \toprule
    loss & alpha & seeds & accuracy & ECE & accuracy {[}1] & ECE {[}1] \\
    \midrule
    cross-entropy & --- & 3 & \textbf{0.9219 $\pm$ 0.0000} & 0.0312 $\pm$ 0.0000 & 0.91 & 0.1291 $\pm$ 0.01 \\
    label relaxation & 0.1, 0.2 & 2 & \textbf{0.9219 $\pm$ 0.0221} & \textbf{0.0234 $\pm$ 0.0110} & --- & --- \\
    focal & 2\dag{} & 2 & 0.8906 $\pm$ 0.0221 & 0.2500 $\pm$ 0.0000 & --- & --- \\
    \bottomrule
  \end{tabular}

  \footnotesize
  Test data; mean $\pm$ sample standard deviation over seeds (validated ones if alpha was chosen).\par
  \dag{} Not chosen: this loss has no validation runs.\par
  {[}1] 100 \% of the paper's\_code, 50 epochs, 3 seeds.\par
\end{table}
"""  # noqa: E501

CSV = """\
dataset_name,model_name,epochs,setting,optimized_for,loss,alpha_chosen,alphas,seeds,n_seeds,\
accuracy_mean,accuracy_std,ece_mean,ece_std,"100 % of the paper's_code, 50 epochs: accuracy",\
"100 % of the paper's_code, 50 epochs: accuracy_std","100 % of the paper's_code, 50 epochs: ece",\
"100 % of the paper's_code, 50 epochs: ece_std","100 % of the paper's_code, 50 epochs: seeds"
fashion_mnist,simple_dense,10,,accuracy,cross-entropy,False,0.0 0.0 0.0,0 1 2,3,\
0.921875,0.0,0.03125,0.0,0.91,,0.1291,0.01,3
fashion_mnist,simple_dense,10,,accuracy,label relaxation,True,0.1 0.2,0 2,2,\
0.921875,0.02209708691207961,0.0234375,0.011048543456039806,,,,,
fashion_mnist,simple_dense,10,,accuracy,focal,False,2.0 2.0,0 1,2,\
0.890625,0.02209708691207961,0.25,0.0,,,,,
"""


def written(format: str, runs: list[Any] = RUNS, *published: Any) -> str:
    return render(runs, published, format)


@pytest.mark.parametrize(("format", "first"), [("markdown", MARKDOWN), ("latex", LATEX), ("csv", CSV)])
def test_formats(format: str, first: str) -> None:
    """The table of the alphas that are best by accuracy; that of ECE comes next."""
    text = written(format, RUNS, CODE)
    assert text.startswith(first)
    second = {"csv": ",ece,cross-entropy,"}.get(format, "10 epochs: alpha optimized for ECE")
    assert second in text.removeprefix(first).replace(r"\_", "_")


def test_settings_of_a_csv() -> None:
    runs = [record(0.9, 0.1, test_run=True, batch_size=size) for size in (32, 64)]
    lines = csv.DictReader(io.StringIO(written("csv", runs)))
    settings = [(line["setting"], line["optimized_for"]) for line in lines]
    assert settings == [("batch_size=32", ""), ("batch_size=64", "")]


def test_best_numbers_are_bold() -> None:
    numbers = [(0.90001, 0.1), (0.90004, 0.2), (0.9, 0.1), (0.8, 0.3)]
    runs = [
        record(*each, loss_name="focal", alpha=alpha, test_run=True) for alpha, each in enumerate(numbers)
    ]
    bold = re.findall(r"\*\*(.*?)\*\*", written("markdown", runs))
    assert bold == ["0.9000", "0.1000", "0.9000", "0.9000", "0.1000"]
    assert "**" not in written("markdown", runs[:1])


def test_escapes_special_characters() -> None:
    published = CODE | {"source": r"a|b *c* `d` <e> \f [g] #h & i_j"}
    assert r"[1] a\|b \*c\* \`d\` \<e> \\f [g] #h & i_j, 50 epochs" in written("markdown", RUNS, published)
    published = CODE | {"source": "a|b [g] #h & i_j"}
    assert r"{[}1] a|b {[}g] \#h \& i\_j, 50 epochs" in written("latex", RUNS, published)


def test_rejects_no_runs() -> None:
    for format in FORMATS:
        with pytest.raises(ValueError, match=r"^There are no finished runs to make a table of\.$"):
            render([], format=format)
