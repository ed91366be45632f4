const $ = (id) => document.getElementById(id);
// What users and models write is only ever put in as text, never as HTML.
const make = (tag, text, cls) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
};
