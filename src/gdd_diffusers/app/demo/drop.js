// Takes images that are dropped anywhere, pasted or chosen, and the examples. Gradio runs this once, with `element`,
// `props`, `upload` and `trigger`.
const input = element.querySelector("input");
const state = element.querySelector(".state");

async function take(files) {
  const file = files[0];
  if (!file) return;
  const megabytes = file.size / 1e6;
  if (files.length > 1) {
    state.textContent = "One image at a time, please.";
  } else if (megabytes > props.max_megabytes) {
    state.textContent = `${file.name} has ${megabytes.toFixed(0)} MB; this page takes up to ${props.max_megabytes} MB.`;
  } else {
    state.textContent = `Sending ${file.name}`;
    try {
      const { path } = await upload(file);
      state.textContent = "";
      trigger("upload", { path });
    } catch {
      state.textContent = `${file.name} could not be sent. Does the server still run?`;
    }
  }
}

input.addEventListener("change", () => {
  take([...input.files]);
  input.value = "";
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files);
});
for (const button of element.querySelectorAll("[data-number]")) {
  button.addEventListener("click", () => trigger("select", { number: Number(button.dataset.number) }));
}

// Gradio's sliders say that they were let go of to a mouse, not to a keyboard.
document.addEventListener("keyup", (event) => {
  if (event.target.matches("#controls input[type=range]")) {
    event.target.dispatchEvent(new Event("pointerup", { bubbles: true }));
  }
});
