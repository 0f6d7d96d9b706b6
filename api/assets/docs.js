// Shows the description that this server makes of itself. Tokens stay in this page's memory.
"use strict";

// Swagger UI has a dark form, but doesn't ask the browser whether it is wanted.
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  defaultModelExpandDepth: 3,
  filter: true,
  persistAuthorization: false,
  syntaxHighlight: { activated: true },
  tryItOutEnabled: false,
  validatorUrl: null,
});
