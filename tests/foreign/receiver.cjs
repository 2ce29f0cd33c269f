// A webhook receiver of the Node world: verifies with two published libraries, shares no code with us.
// Usage: node receiver.cjs NODE_MODULES SECRET. Prints its port. Answers each POST with 200 and one letter
// per library, standardwebhooks first: "y" for verified, "n" for refused.
"use strict";
const http = require("node:http");
const path = require("node:path");

const [modules, secret] = process.argv.slice(2);
const verifiers = ["standardwebhooks", "svix"].map((name) => {
  const { Webhook } = require(path.join(modules, name));
  return new Webhook(secret);
});

function letter(verifier, body, headers) {
  try {
    verifier.verify(body, headers);
    return "y";
  } catch {
    return "n";
  }
}

const server = http.createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const body = Buffer.concat(pieces);
    response.end(verifiers.map((verifier) => letter(verifier, body, request.headers)).join(""));
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
