"""Search in Chinese: words are not divided by spaces, so pairs of characters and whole stretches of them are indexed.

A word of two characters is found as a pair, a longer one inside a stretch. Next: `site_pages.py`.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")


class SearchChinese(SearchEnglish):
    """English words as in English, with their endings cut; Chinese as it stands."""

    lang = "zh"

    def split(self, input: str) -> list[str]:
        stretches = CHINESE.findall(input)
        pairs = [stretch[place : place + 2] for stretch in stretches for place in range(len(stretch) - 1)]
        return [*super().split(CHINESE.sub(" ", input)), *stretches, *pairs]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_search_language(SearchChinese)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
