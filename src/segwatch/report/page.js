"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const LIMIT = 500;
  const wanted = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const column = Object.fromEntries(data.names.map((name, i) => [name, i]));
  let sortBy = null, ascending = true;
  const element = (tag, text) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; return e; };
  const shown = () => {
    const text = (wanted.search || "").toLowerCase();
    const rows = data.rows.filter(row =>
      data.filters.every(name => !(name in wanted) || String(row[column[name]]) === wanted[name]) &&
      (!text || data.filters.some(name => String(row[column[name]]).toLowerCase().includes(text))));
    if (sortBy === null) return rows;
    const key = column[sortBy], sign = ascending ? 1 : -1;
    const compare = (a, b) => a === b ? 0 : a === null ? 1 : b === null ? -1 : (a < b ? -sign : sign);
    return rows.sort((a, b) => compare(a[key], b[key]));
  };
  const isNumber = name => data.rows.some(row => typeof row[column[name]] === "number");
  const draw = () => {
    const rows = shown(), table = document.getElementById("alerts"), head = element("tr");
    table.replaceChildren();
    for (const name of data.names) {
      const th = element("th"), button = element("button", name + (name === sortBy ? (ascending ? " ↑" : " ↓") : ""));
      button.onclick = () => { ascending = sortBy === name ? !ascending : true; sortBy = name; draw(); };
      if (isNumber(name)) th.className = "number";
      th.append(button); head.append(th);
    }
    table.append(head);
    for (const row of rows.slice(0, LIMIT)) {
      const tr = element("tr");
      row.forEach(value => {
        const td = element("td", value === null ? "" : typeof value === "number" && Math.abs(value) >= 1 ? value.toLocaleString("en") : value);
        if (typeof value === "number") td.className = "number";
        tr.append(td);
      });
      table.append(tr);
    }
    const cut = data.total > data.rows.length ? `, of the ${data.rows.length} worst of ${data.total}` : "";
    document.getElementById("count").textContent = `${rows.length} alerts${cut}` + (rows.length > LIMIT ? `, the first ${LIMIT} shown` : "");
  };
  const set = (name, value) => {
    if (value === "") delete wanted[name]; else wanted[name] = value;
    history.replaceState(null, "", "#" + new URLSearchParams(wanted));
    draw();
  };
  for (const name of data.filters) {
    const box = element("label", name), select = element("select"), all = element("option", "all");
    all.value = ""; select.append(all);
    for (const value of [...new Set(data.rows.map(row => String(row[column[name]])))].sort()) {
      const option = element("option", value); option.value = value; select.append(option);
    }
    select.value = wanted[name] || ""; select.onchange = () => set(name, select.value);
    box.append(select); document.getElementById("filters").append(box);
  }
  const box = element("label", "search"), input = element("input");
  input.type = "search"; input.value = wanted.search || ""; input.oninput = () => set("search", input.value);
  box.append(input); document.getElementById("filters").append(box);
  draw();
})();
