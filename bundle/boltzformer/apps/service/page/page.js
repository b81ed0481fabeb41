// The page: a scan and prompts go to the service, masks come back into the viewer.

import { drawChart, legend, markSlice } from "./chart.js";
import { Client, droppedFiles } from "./client.js";
import { Viewer } from "./viewer.js";

const at = (id) => document.getElementById(id);
const isNifti = (name) => /\.nii(\.gz)?$/i.test(name);
const POLL_MS = 700;
const FORMATS = [
  [/^scan\.nii\.gz$/, "Masks (NIfTI)"],
  [/\.seg\.dcm$/, "DICOM SEG"],
  [/\.seg\.nrrd$/, "3D Slicer"],
  [/\.json$/, "Numbers (JSON)"],
];

const client = new Client(askToken);
const viewer = new Viewer(at("canvas"), moved);
let files = [];
let findings = [];
let current = null; // id of the job whose results are on the page

// ---- the scan -------------------------------------------------------------------------------------------------------

async function choose(chosen) {
  files = chosen.filter((file) => !file.name.startsWith("."));
  if (!files.length) return;
  const size = files.reduce((sum, file) => sum + file.size, 0) / 1e6;
  const one = files.length === 1;
  at("chosen").textContent = `${one ? files[0].name : `${files.length} files`}, ${size.toFixed(size < 10 ? 1 : 0)} MB`;
  at("drop").classList.add("full");
  forget();
  say("");
  if (one && isNifti(files[0].name)) await showScan(files[0], files[0].name);
}

async function showScan(blob, name) {
  try {
    await viewer.showScan(blob, name);
  } catch {
    say("This file cannot be shown here; the service may still read it.", true);
    return;
  }
  at("empty").hidden = true;
  setSlider();
}

at("file").onchange = (event) => choose([...event.target.files]);
at("folder").onchange = (event) => choose([...event.target.files]);
document.ondragover = (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
};
document.ondragleave = () => at("drop").classList.remove("over");
document.ondrop = async (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  choose(await droppedFiles(event.dataTransfer));
};

// ---- the request ----------------------------------------------------------------------------------------------------

function prompts() {
  return at("prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
}

at("request").onsubmit = async (event) => {
  event.preventDefault();
  if (!files.length) return say("Give a scan first: a NIfTI file or a DICOM folder.", true);
  if (!prompts().length) return say("Say what to look for, for example: lung nodule in chest CT", true);
  forget();
  busy(true);
  say("Sending the scan …");
  try {
    await follow(await client.submit(files, prompts(), at("modality").value));
  } catch (error) {
    say(error.message, true);
  } finally {
    busy(false);
  }
};

async function follow(job) {
  current = job.id;
  let described = false;
  for (;;) {
    if (job.state === "failed") throw new Error(job.error);
    if (job.window && !described) {
      described = true;
      await describe(job);
    }
    if (job.state === "done") break;
    tell(job);
    await new Promise((done) => setTimeout(done, POLL_MS));
    job = await client.job(job.id);
  }
  await showResults(job);
}

async function describe(job) {
  viewer.plane = job.plane;
  if (job.files.includes("image.nii.gz")) await showScan(await client.file(job.id, "image.nii.gz"), "image.nii.gz");
  viewer.setWindow(job.window);
  setSlider();
}

function tell(job) {
  at("progress").removeAttribute("value");
  if (job.state === "queued") return say(job.ahead ? `Waiting; ${job.ahead} before this one.` : "Waiting …");
  if (!job.slices) return say("Reading the scan …");
  at("progress").value = job.slices_done / job.slices;
  say(`Slice ${Math.min(job.slices_done, job.slices)} of ${job.slices}`);
}

at("stop").onclick = () => current && client.remove(current).catch((error) => say(error.message, true));

// ---- the results ----------------------------------------------------------------------------------------------------

async function showResults(job) {
  findings = job.findings;
  await viewer.showMask(await client.file(job.id, "scan.nii.gz"), findings.map((finding) => finding.color));
  at("findings").replaceChildren(...findings.map(card));
  at("downloads").replaceChildren(...job.files.flatMap((name) => download(job.id, name)));
  at("results").hidden = false;
  redraw();
  const best = findings.find((finding) => finding.found);
  if (best) goTo(largest(best));
  say([`Done in ${job.seconds.toFixed(1)} s.`, ...job.notes].join("\n"));
}

function card(finding, index) {
  const item = document.createElement("li");
  const shown = element("input", { type: "checkbox", checked: true, id: `finding-${index}` });
  shown.style.accentColor = finding.color;
  shown.onchange = () => {
    viewer.toggle(index, shown.checked);
    redraw();
  };
  const what = element("label", { className: "what", htmlFor: shown.id, textContent: finding.prompt });
  item.append(shown, what);
  if (finding.found) {
    const go = element("button", { type: "button", textContent: "Show", ariaLabel: `Show ${finding.prompt}` });
    go.onclick = () => goTo(largest(finding));
    item.append(go);
  }
  item.append(element("span", { className: "told", textContent: told(finding) }));
  return item;
}

function told(finding) {
  const parts = [];
  if (finding.found) {
    const ml = finding.millilitres;
    parts.push(`${ml >= 100 ? ml.toFixed(0) : ml.toPrecision(3)} ml`);
    parts.push(finding.parts === 1 ? "1 part" : `${finding.parts} parts`);
  } else {
    parts.push("not found");
  }
  if (finding.probability !== null) parts.push(`probability ${finding.probability.toFixed(2)}`);
  const near = finding.nearest_known;
  if (near?.far) parts.push(`never learnt; the nearest known term is ${near.term}`);
  return parts.join(" · ");
}

function download(id, name) {
  const [, label] = FORMATS.find(([pattern]) => pattern.test(name)) ?? [];
  if (!label) return [];
  const button = element("button", { type: "button", textContent: label });
  button.onclick = async () => {
    try {
      const url = URL.createObjectURL(await client.file(id, name));
      element("a", { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (error) {
      say(error.message, true);
    }
  };
  return [button];
}

function forget() {
  if (current) client.remove(current).catch(() => {}); // its time may be over already
  current = null;
  findings = [];
  at("results").hidden = true;
  if (viewer.nv.volumes.length > 1) viewer.nv.removeVolume(viewer.nv.volumes[1]);
  redraw();
}

// ---- slices ---------------------------------------------------------------------------------------------------------

function largest(finding) {
  return finding.square_millimetres.indexOf(Math.max(...finding.square_millimetres));
}

function setSlider() {
  at("slice").max = viewer.slices;
  at("slice").disabled = false;
  moved(viewer.slice);
}

function goTo(slice) {
  viewer.slice = slice;
  moved(slice);
}

function moved(slice) {
  at("slice").value = slice + 1;
  const scores = findings.filter((finding) => finding.existence).map((finding) => finding.existence[slice].toFixed(2));
  at("place").textContent = [`${slice + 1} / ${viewer.slices}`, ...scores].join("  ");
  markSlice(at("chart"), slice, viewer.slices);
}

function redraw() {
  drawChart(at("chart"), findings, viewer.hidden);
  at("legend").textContent = legend(findings);
  if (viewer.slices) moved(viewer.slice);
}

at("slice").oninput = (event) => goTo(event.target.valueAsNumber - 1);
at("opacity").oninput = (event) => viewer.setOpacity(event.target.valueAsNumber);
at("planes").onchange = (event) => viewer.show(event.target.value);

// ---- small things ---------------------------------------------------------------------------------------------------

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

function busy(on) {
  at("go").disabled = on;
  at("stop").hidden = at("progress").hidden = !on;
}

function element(kind, properties) {
  return Object.assign(document.createElement(kind), properties);
}

async function askToken() {
  at("ask").showModal();
  await new Promise((done) => at("ask").addEventListener("close", done, { once: true }));
  return at("token").value;
}

function suggest(text) {
  const button = element("button", { type: "button", textContent: text });
  button.onclick = () => {
    if (!prompts().includes(text)) at("prompts").value = [...prompts(), text].join("\n");
  };
  return button;
}

client.info().then(
  (info) => {
    at("about").textContent = `version ${info.version}, on ${info.device === "cuda" ? "GPU" : "CPU"}`;
    at("most").textContent = `At most ${info.limits.prompts}.`;
    at("suggestions").replaceChildren(...info.suggestions.map(suggest));
  },
  (error) => say(error.message, true),
);
