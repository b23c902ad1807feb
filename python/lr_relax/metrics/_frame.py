"""Tables of curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def frame(columns: dict[str, Any]) -> pd.DataFrame:
    try:
        import pandas as pd
    except ModuleNotFoundError as missing:
        raise ImportError("`to_frame` needs pandas: pip install pandas") from missing
    return pd.DataFrame(columns)
