"""What hands do on a page is seen to have worked: here on pages that lose it at first."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.hands import enter

BUILT_ANEW = """
<input aria-label="Epochs" value="9">
<script>
  const field = document.querySelector("input");
  const old = () => field.replaceWith(Object.assign(field.cloneNode(), { value: "9" }));
  field.addEventListener("keydown", event => event.key === "Enter" && setTimeout(old, 100));
</script>
"""
"""A field that is replaced by what it was at first, once, soon after somebody has typed into it."""


def test_what_was_typed_is_typed_again_where_a_page_that_is_built_anew_loses_it(page: Page) -> None:
    page.set_content(BUILT_ANEW)
    field = page.get_by_label("Epochs")
    enter(field, "200", lambda: None)
    page.wait_for_timeout(500)
    expect(field).to_have_value("200", timeout=0)
