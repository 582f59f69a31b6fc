// Classifies pictures from Node: `npm install && node classify.js MODEL PICTURE ...`, in this folder.
//
// The protocol's files are all that it needs; FOLDSERVE_SERVER is the server's HOST:PORT.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [model, ...pictures] = process.argv.slice(2);
const server = process.env.FOLDSERVE_SERVER ?? "127.0.0.1:8001";
const definition = loader.loadSync("classifier.proto", {
  includeDirs: [path.join(__dirname, "..", "..", "protos")],
});
const { foldserve } = grpc.loadPackageDefinition(definition);
const classifier = new foldserve.v1.Classifier(server, grpc.credentials.createInsecure());

const request = { modelName: model, images: pictures.map((picture) => fs.readFileSync(picture)), topK: 2 };
classifier.Classify(request, { deadline: Date.now() + 30_000 }, (error, answer) => {
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
  } else {
    answer.results.forEach(({ labels }, index) => {
      const shown = labels.map(({ name, probability }) => `${name} ${(100 * probability).toFixed(1)}%`);
      console.log([pictures[index], ...shown].join("\t"));
    });
  }
  classifier.close();
});
