// NiiVue with one scan and one label map.

const PLANES = { axial: 0, coronal: 1, sagittal: 2, all: 3 };
const AXES = { sagittal: 0, coronal: 1, axial: 2 };

export class Viewer {
  // `moved(slice)` is called where the reader goes to another slice in the picture.
  constructor(canvas, moved) {
    this.canvas = canvas;
    this.plane = "axial"; // of the network's slices
    this.opacity = 0.5;
    this.colors = [];
    this.hidden = new Set();
    this.nv = new niivue.Niivue({
      backColor: [0.055, 0.075, 0.098, 1],
      crosshairColor: [0.41, 0.68, 0.88, 0.6],
      crosshairWidth: 0.3,
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      show3Dcrosshair: false,
      showLegend: false,
      loadingText: "",
      logLevel: "error",
    });
    this.nv.onLocationChange = () => this.slices && moved(this.slice);
    this.ready = this.nv.attachToCanvas(canvas);
  }

  async showScan(blob, name) {
    await this.ready;
    this.clear();
    const image = await niivue.NVImage.loadFromFile({ file: new File([blob], name) });
    this.nv.addVolume(image);
    this.show("axial");
  }

  clear() {
    for (const volume of [...this.nv.volumes]) this.nv.removeVolume(volume);
    this.colors = [];
    this.hidden.clear();
  }

  setWindow([low, high]) {
    const [image] = this.nv.volumes;
    if (!image) return;
    [image.cal_min, image.cal_max] = [low, high];
    this.nv.updateGLVolume();
  }

  // `colors`: "#rrggbb" of the values 1, 2, ...
  async showMask(blob, colors) {
    this.colors = colors;
    this.hidden.clear();
    const mask = await niivue.NVImage.loadFromFile({ file: new File([blob], "mask.nii.gz") });
    mask.opacity = this.opacity;
    this.nv.addVolume(mask);
    this.paint();
  }

  paint() {
    const mask = this.nv.volumes[1];
    if (!mask) return;
    const parts = this.colors.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
    const channel = (index) => [0, ...parts.map((part) => part[index])];
    mask.setColormapLabel({
      R: channel(0), G: channel(1), B: channel(2),
      A: [0, ...this.colors.map((_, index) => (this.hidden.has(index) ? 0 : 255))],
      I: [0, ...this.colors.map((_, index) => index + 1)],
    });
    this.nv.updateGLVolume();
  }

  toggle(index, shown) {
    if (shown) this.hidden.delete(index);
    else this.hidden.add(index);
    this.paint();
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    if (this.nv.volumes[1]) this.nv.setOpacity(1, opacity);
  }

  show(view) {
    this.nv.setSliceType(PLANES[view]);
  }

  get slices() {
    const [image] = this.nv.volumes;
    return image ? image.dimsRAS[1 + AXES[this.plane]] : 0;
  }

  // From 0: from left to right, from back to front, or upwards.
  get slice() {
    const at = this.nv.scene.crosshairPos[AXES[this.plane]];
    return Math.min(this.slices - 1, Math.max(0, Math.floor(at * this.slices)));
  }

  set slice(index) {
    this.nv.scene.crosshairPos[AXES[this.plane]] = (index + 0.5) / this.slices;
    this.nv.drawScene();
  }
}
