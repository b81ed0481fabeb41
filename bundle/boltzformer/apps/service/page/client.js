// Calls to the service; every failure is an Error with one line for the reader.

export class Client {
  // `askToken()` gives a promise of the token that a reader types.
  constructor(askToken) {
    this.askToken = askToken;
  }

  async call(path, options = {}) {
    const token = sessionStorage.getItem("token");
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch {
      throw new Error("The service does not answer.");
    }
    if (answer.status === 401) {
      sessionStorage.setItem("token", await this.askToken());
      return this.call(path, options);
    }
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error ?? `The service answered ${answer.status}.`);
  }

  async info() {
    return (await this.call("/api/info")).json();
  }

  async submit(files, prompts, modality) {
    const form = new FormData();
    for (const prompt of prompts) form.append("prompt", prompt);
    form.append("modality", modality);
    for (const file of files) form.append("file", file, file.name);
    return (await this.call("/api/jobs", { method: "POST", body: form })).json();
  }

  async job(id) {
    return (await this.call(`/api/jobs/${id}`)).json();
  }

  async file(id, name) {
    return (await this.call(`/api/jobs/${id}/files/${name}`)).blob();
  }

  async remove(id) {
    await this.call(`/api/jobs/${id}`, { method: "DELETE" });
  }
}

// The files of a drop, also those in folders.
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(filesOf))).flat();
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed)); // 100 at a time
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(filesOf))).flat();
}
