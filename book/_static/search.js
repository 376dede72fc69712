// The search page, where the site is served: Pagefind's results, which lead to sections. Opened from disk, where a
// browser reads no index, the page keeps Sphinx's own.
(() => {
  "use strict";
  const SHOWN = 12;
  const index = new URL("../pagefind/pagefind.js", document.currentScript.src);
  const query = new URLSearchParams(location.search).get("q") || "";

  const make = (name, text, attributes = {}) => {
    const element = Object.assign(document.createElement(name), attributes);
    element.textContent = text;
    return element;
  };

  // An excerpt is escaped text with <mark> around the words found.
  const excerpt = (html) => {
    const paragraph = make("p", "");
    for (const node of new DOMParser().parseFromString(html, "text/html").body.childNodes) {
      paragraph.append(make(node.nodeName === "MARK" ? "mark" : "span", node.textContent));
    }
    return paragraph;
  };

  const item = (section) => {
    const li = make("li", "");
    li.append(make("a", section.meta.title, { href: section.url }), excerpt(section.excerpt));
    return li;
  };

  const show = async () => {
    const place = document.getElementById("search-results");
    if (!query || !place || !location.protocol.startsWith("http")) return;
    let found;
    try {
      const pagefind = await import(index);
      found = (await pagefind.search(query)).results;
    } catch {
      return; // Sphinx's results stay
    }
    const sections = await Promise.all(found.slice(0, SHOWN).map((result) => result.data()));
    const ours = make("div", "", { className: "qb-search" });
    const count = found.length === 1 ? "1 section" : `${found.length} sections`;
    const status = found.length ? `${count} found for “${query}”` : `Nothing found for “${query}”. Try fewer words.`;
    const list = make("ol", "");
    list.append(...sections.map(item));
    ours.append(make("p", status, { role: "status" }), list);
    place.replaceWith(ours);
  };

  document.addEventListener("DOMContentLoaded", show);
})();
