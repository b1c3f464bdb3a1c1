"""
The layout of the page, and what its controls call.

Gradio has no component that takes dropped and pasted images anywhere on the page, and none that shows two images at
1:1; these are the HTML and JavaScript files beside this one.
"""

from pathlib import Path

import gradio as gr

from ...pipeline_real_denoise import BUNDLED
from .jobs import Jobs, page_error


FOLDER = Path(__file__).parent
MAX_MEGABYTES = 200
MAX_STEPS = 10
MAX_TILE_SIZE = 2048

# Gradio's own colours, with a contrast of at least 4.5
THEME = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_title_text_color="*neutral_800",
    block_title_text_color_dark="*neutral_100",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
)
PRESETS = [("Phone", "phone"), ("Large camera", "camera"), ("Either", "mixed"), ("White noise", "gaussian")]
ISO = [100, 200, 400, 800, 1600, 3200, 6400, 12800]
INFO = {
    "strength": "0 leaves the image as it is, 1 removes all noise.",
    "steps": "The number of passes over the image; each takes as long as the first.",
    "make_noisy": "For a clean image: shows how close the denoiser gets to it.",
    "preset": "The camera to simulate.",
    "iso": "The higher, the noisier. White noise has none.",
    "rule": "The result of several steps: improved is the mean of their predictions, origin the last one.",
    "tile_size": "Side in pixels of the tiles that a large image is cut into; smaller ones need less memory.",
    "one_model": "gdd-fast is several times as fast as gdd-small, and less precise.",
    "model": "Or a repo on the Hugging Face Hub such as org/name. gdd-fast is faster than gdd-small and less precise.",
    "folder": "Or a folder, or a repo on the Hugging Face Hub such as org/name. gdd-fast is faster and less precise.",
}


def from_files(name: str, **props) -> gr.HTML:
    """Make a component of `name`.html and `name`.js."""
    html, js = (FOLDER.joinpath(name).with_suffix(suffix).read_text("utf-8") for suffix in (".html", ".js"))
    return gr.HTML(html_template=html, js_on_load=js, apply_default_css=False, **props)


def build_page(jobs: Jobs) -> gr.Blocks:
    def defaults(name: str) -> tuple[dict, dict, dict]:
        """Load a model, and return what it sets the controls to."""
        try:
            pipe = jobs.load(name)
        except Exception as error:
            raise page_error(error, jobs.root) from error
        steps, tile_size = pipe.config.default_num_inference_steps, pipe.config.tile_size
        return (
            {"value": steps, "maximum": max(MAX_STEPS, steps)},
            {"value": pipe.scheduler.config.step_rule},
            {"value": tile_size, "maximum": max(MAX_TILE_SIZE, tile_size or 0)},
        )

    first_steps, first_rule, first_tile_size = defaults(jobs.first_model)
    with gr.Blocks(title="gdd", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown("# Remove noise from a photograph")
        with gr.Row(elem_id="page"):
            with gr.Column(elem_id="image"):
                drop = from_files("drop", max_megabytes=MAX_MEGABYTES)
                with gr.Row():
                    start = gr.Button("Denoise", variant="primary", min_width=100)
                    cancel = gr.Button("Cancel", interactive=False, min_width=100)
                status = '<div role="status">${value}</div>'
                facts = gr.HTML("", html_template=status, elem_id="facts", apply_default_css=False)
            with gr.Column(elem_id="viewer"):
                viewer = from_files("viewer")
            with gr.Column(elem_id="controls"):
                strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", info=INFO["strength"])
                steps = gr.Slider(1, step=1, label="Quality (steps)", info=INFO["steps"], **first_steps)
                make_noisy = gr.Checkbox(label="Make it noisy first", info=INFO["make_noisy"])
                with gr.Group(visible=False) as camera:
                    preset = gr.Radio(PRESETS, value="phone", label="Camera", info=INFO["preset"])
                    iso = gr.Dropdown(ISO, value=800, label="ISO", info=INFO["iso"])
                with gr.Accordion("More", open=False):
                    rule = gr.Radio(["improved", "origin"], label="Rule", info=INFO["rule"], **first_rule)
                    tile_size = gr.Number(
                        precision=0, minimum=1, label="Tile size", info=INFO["tile_size"], **first_tile_size
                    )
                    may_load = "one_model" if jobs.one_model else "folder" if jobs.allow_folders else "model"
                    name = gr.Dropdown(
                        sorted({jobs.first_model, *BUNDLED}),
                        value=jobs.first_model,
                        label="Model",
                        info=INFO[may_load],
                        allow_custom_value=not jobs.one_model,
                    )

        settings = [strength, steps, make_noisy, preset, iso, name, rule, tile_size]
        job = gr.State()
        quick = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
        slow = {"concurrency_limit": 1, "show_progress_on": facts, "api_visibility": "private"}

        # several at once, so that one visitor's slow file does not hold up the others
        several = slow | {"concurrency_limit": 8, "concurrency_id": "open"}
        drop.upload(jobs.open_upload, None, [viewer, facts], **several)
        drop.select(jobs.open_example, None, [viewer, facts], **several)
        start.click(jobs.start, settings, [job, cancel], **quick)
        changed = [strength.release, steps.release, make_noisy.input, preset.input, iso.input, rule.input]
        changed += [tile_size.submit, tile_size.blur]
        gr.on(changed, jobs.restart, settings, [job, cancel], trigger_mode="always_last", **quick)
        make_noisy.change(lambda on: gr.Group(visible=on), make_noisy, camera, **quick)
        loaded = name.input(
            lambda name: [gr.update(**update) for update in defaults(name)], name, [steps, rule, tile_size], **slow
        )
        loaded.success(jobs.restart, settings, [job, cancel], **quick)

        work = job.change(jobs.denoise, job, [viewer, facts], trigger_mode="always_last", **slow)
        work.then(jobs.can_cancel, None, cancel, **quick)
        cancel.click(jobs.cancel, None, [cancel, facts], cancels=[work], **quick)
        page.unload(jobs.leave)
    return page
