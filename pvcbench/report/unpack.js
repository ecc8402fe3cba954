// Small helpers, and the packed blocks of the page: base64 of gzip, unpacked when somebody asks for them.

const at = (id) => document.getElementById(id);
const known = new Map();

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text; // never as markup: models write what they like
  if (name) element.className = name;
  return element;
}

function told(number, digits) {
  return number === null || number === undefined ? "-" : number.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
}

async function bytesOf(id) {
  if (!("DecompressionStream" in window)) throw new Error("This browser cannot unpack gzip; one of 2023 or later can.");
  const packed = Uint8Array.from(atob(at(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip")));
}

function unpack(id) {
  if (!known.has(id)) known.set(id, bytesOf(id).then((content) => content.json()));
  return known.get(id);
}

async function showPictures(part) {
  for (const image of part.querySelectorAll("img[data-block]:not([src])")) {
    const content = await (await bytesOf(image.dataset.block)).arrayBuffer();
    image.src = URL.createObjectURL(new Blob([content], {type: image.dataset.kind}));
  }
}
