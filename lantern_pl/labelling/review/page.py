"""The review page: a local web page on gradio, which is imported here and nowhere else (extra `review`)."""

import html
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lantern_pl.errors import UserError
from lantern_pl.labelling.review.session import Session, Shown
from lantern_pl.labelling.review.view import pair_html

try:
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as error:
    raise UserError(
        f"The review page needs gradio, which can't be imported ({error}): pip install 'lantern-pl[review]'. Without it: "
        "--auto-accept, --export and --import."
    ) from error

HOST = "127.0.0.1"
# Fonts that gradio brings along. Of this one's bold weights only 700 has all letters.
_FONT = (gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif")
_HERE = Path(__file__).parent


def open_page(session: Session, port: int | None = None, in_browser: bool = False) -> gr.Blocks:
    """Serve the page on this machine alone, from a thread: `local_url` of the result is its address, `close()` ends it.

    Nothing of it is sent to or fetched from another machine. Without a port the first free one from 7860 on is taken.
    Raises UserError where the port is taken or gradio can't serve.
    """
    # gradio asks its own server whether it's there, with a client that would go through a proxy.
    os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), HOST)))
    blocks = build(session)
    try:
        blocks.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=in_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            # Otherwise each pair's texts are kept in the browser.
            run_history=False,
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            show_error=True,
            theme=gr.themes.Default(primary_hue="emerald", font=_FONT),
            css_paths=_HERE / "page.css",
            head=f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>",
            # A page elsewhere may point a name of its own at this machine: then the browser says that name.
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]},
        )
    except OSError as error:
        where = f"port {port} of {HOST} is taken" if port else f"no port of {HOST} from 7860 on is free"
        raise UserError(f"The page can't be served: {where}. Give another: --port 8123.") from error
    return blocks


def build(session: Session) -> gr.Blocks:
    """The page's parts and what their events do."""
    turns = itertools.count(1)

    def fill(shown: Shown) -> tuple[Any, ...]:
        pair_id = shown.pair.pair_id if shown.pair else ""
        return pair_html(shown, next(turns)), pair_id, shown.level, shown.explanation, shown.note

    def answering(act: Callable[..., Shown]) -> Callable[..., tuple[Any, ...]]:
        def answer(*given: Any) -> tuple[Any, ...]:
            try:
                return fill(act(*given))
            except UserError as error:
                # gradio shows the message as HTML.
                raise gr.Error(html.escape(str(error)), print_exception=False) from error

        return answer

    levels = [(f"{number} {level}", level) for number, level in enumerate(session.labels.levels, start=1)]
    with gr.Blocks(title=f"Review: {session.reviewer}", analytics_enabled=False, fill_width=True) as blocks:
        pair = gr.HTML(elem_id="pair", js_on_load=None, apply_default_css=False)
        # What the form is about travels with it: a decision is never taken for another pair than the one on the screen.
        shown = gr.Textbox(visible=False)
        with gr.Row(elem_id="form"):
            with gr.Column(scale=3):
                level = gr.Radio(levels, label="Level (1, 2, ...)", elem_id="level")
                note = gr.Textbox(label="Note (m)", elem_id="note", lines=1, max_lines=1)
            with gr.Column(scale=5):
                explanation = gr.Textbox(
                    label="Explanation (e; Esc leaves it, Ctrl+Enter accepts)", elem_id="explanation", lines=6, max_lines=6
                )
            with gr.Column(scale=2):
                accept = gr.Button("Accept (a)", elem_id="accept", variant="primary", size="sm")
                edit = gr.Button("Edit (e)", elem_id="edit", size="sm")
                reject = gr.Button("Reject (r)", elem_id="reject", variant="stop", size="sm")
                with gr.Row():
                    previous = gr.Button("Previous (p)", elem_id="previous", size="sm", min_width=40)
                    following = gr.Button("Next (n)", elem_id="next", size="sm", min_width=40)
        form = [pair, shown, level, explanation, note]
        quick: dict[str, Any] = {"outputs": form, "queue": False, "show_progress": "hidden", "api_visibility": "private"}
        blocks.load(answering(session.first), None, **quick)
        accept.click(answering(session.accept), [shown, level, explanation, note], **quick)
        reject.click(answering(session.reject), [shown, note], **quick)
        following.click(answering(session.next), [shown], **quick)
        previous.click(answering(lambda pair_id: session.previous(pair_id or None)), [shown], **quick)
        edit.click(None, None, None)  # the page's script puts the cursor into the explanation
    return blocks
