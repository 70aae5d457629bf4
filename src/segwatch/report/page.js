"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const LIMIT = 500;
  const section = document.getElementById("alerts"), filters = document.getElementById("filters");
  const [head, body] = [section.querySelector("thead"), section.querySelector("tbody")];
  const element = (tag, text = "", properties = {}) => Object.assign(document.createElement(tag), { textContent: text, ...properties });

  // As the rest of the page writes numbers; one format for all cells, since making one is slow.
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
  const plain = x => Math.abs(x) >= 1e15 ? x.toExponential(2) : Math.abs(x) >= 1000 || Number.isInteger(x) ? whole.format(x)
    : Math.abs(x) >= 0.001 ? digits.format(x) : x.toExponential(2);
  const number = x => plain(x).replace("e+", "e").replaceAll("-", "−");
  const FORMATS = {
    text: x => x, number, signed: x => (x > 0 ? "+" : "") + number(x), p: x => x > 0 && x < 1e-4 ? x.toExponential(1) : String(x),
    direction: x => ({ up: "▲ up", down: "▼ down" })[x] ?? x,
  };
  const isNumber = column => column.kind !== "text" && column.kind !== "direction";

  // What is wanted of each column, by its place, since a dimension may be called as another column is.
  const wanted = new Map();
  let search = "", sortBy = data.columns.findIndex(column => column.kind === "signed"), sign = -1;
  const controls = new Map();
  const chosen = data.columns.map((column, i) => i).filter(i => data.columns[i].filter);

  const names = data.columns.map(column => column.name);
  const key = i => names[i] === "search" || names.indexOf(names[i]) < i ? names[i] + i : names[i];

  const readAddress = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    wanted.clear();
    for (const i of chosen) {
      const value = asked.get(key(i));
      if (value !== null) wanted.set(i, value);
      controls.get(i).value = value ?? "";
    }
    search = input.value = asked.get("search") ?? "";
  };
  const writeAddress = () => {
    const asked = new URLSearchParams([...wanted].map(([i, value]) => [key(i), value]));
    if (search) asked.set("search", search);
    history.replaceState(null, "", "#" + asked);
  };

  const shown = () => {
    const text = search.toLowerCase();
    const rows = data.rows.filter(row =>
      [...wanted].every(([i, value]) => String(row[i]) === value) &&
      (!text || chosen.some(i => String(row[i]).toLowerCase().includes(text))));
    // An impact of either sign by its size.
    const size = data.columns[sortBy].kind === "signed" ? x => x && Math.abs(x) : x => x;
    const compare = (a, b) => a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -sign : sign;
    return rows.sort((a, b) => compare(size(a[sortBy]), size(b[sortBy])));
  };
  const line = row => {
    const tr = element("tr");
    row.forEach((value, i) => {
      const column = data.columns[i], text = value === null ? "–" : FORMATS[column.kind](value);
      const td = element("td", text, { className: isNumber(column) ? "number" : column.kind === "direction" ? value ?? "" : "" });
      if (text.length > 30) td.title = text;
      tr.append(td);
    });
    return tr;
  };
  const count = n => `${whole.format(n)} ${n === 1 ? "alert" : "alerts"}`;
  const draw = () => {
    const rows = shown();
    body.replaceChildren(...rows.slice(0, LIMIT).map(line));
    [...head.rows[0].cells].forEach((th, i) => {
      if (i === sortBy) th.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending"); else th.removeAttribute("aria-sort");
      th.querySelector("span").textContent = i === sortBy ? (sign > 0 ? " ↑" : " ↓") : "";
    });
    const cut = data.total > data.rows.length ? `, of the ${whole.format(data.rows.length)} worst of ${whole.format(data.total)}` : "";
    document.getElementById("count").textContent = count(rows.length) + cut + (rows.length > LIMIT ? `, the first ${LIMIT} shown` : "");
    clear.hidden = !wanted.size && !search;
  };
  const change = () => { draw(); writeAddress(); };

  const addHead = () => {
    const tr = element("tr");
    data.columns.forEach((column, i) => {
      const th = element("th", "", { scope: "col", className: isNumber(column) ? "number" : "" });
      const button = element("button", column.name, { type: "button" });
      button.append(element("span", "", { ariaHidden: "true" }));
      // The newest and the largest first, names from the start; a second press turns the order round.
      button.onclick = () => { sign = sortBy === i ? -sign : i && !isNumber(column) ? 1 : -1; sortBy = i; draw(); };
      th.append(button);
      tr.append(th);
    });
    head.append(tr);
  };
  const addFilter = i => {
    const box = element("label", data.columns[i].name), select = element("select");
    const values = [...new Set(data.rows.map(row => String(row[i])))].sort();
    if (i === 0) values.reverse();
    select.append(element("option", "all", { value: "" }), ...values.map(value => element("option", value, { value })));
    select.onchange = () => { if (select.value) wanted.set(i, select.value); else wanted.delete(i); change(); };
    controls.set(i, select);
    box.append(select);
    filters.append(box);
  };

  addHead();
  chosen.forEach(addFilter);
  const box = element("label", "search"), input = element("input", "", { type: "search" });
  input.oninput = () => { search = input.value; change(); };
  box.append(input);
  const clear = element("button", "show all", { type: "button" });
  clear.onclick = () => { wanted.clear(); search = input.value = ""; controls.forEach(select => { select.value = ""; }); change(); input.focus(); };
  filters.append(box, clear);
  readAddress();
  draw();
  addEventListener("hashchange", () => {
    // A link to a chart is no filter.
    if (!location.hash.includes("=")) return;
    readAddress();
    draw();
    section.scrollIntoView();
  });
})();
