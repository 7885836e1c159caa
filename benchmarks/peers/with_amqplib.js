// amqplib: a confirm channel with a callback for each message, at most 1000 of them unconfirmed.
// It pauses while publish() returns false.
// https://amqp-node.github.io/amqplib/channel_api.html (Flow control, ConfirmChannel)
'use strict';

const { readFileSync } = require('node:fs');
const amqp = require('amqplib');

const WINDOW = 1000;

async function publish(url, count, body) {
  const connection = await amqp.connect(url);
  const channel = await connection.createConfirmChannel();
  await new Promise((resolve, reject) => {
    let sent = 0;
    let confirmed = 0;

    function onConfirm(error) {
      if (error) return reject(error);
      confirmed++;
      if (confirmed === count) return resolve();
      send();
    }

    let room = true;
    function send() {
      while (room && sent < count && sent - confirmed < WINDOW) {
        room = channel.publish('user_events', '', body, {
          contentType: 'application/cloudevents+json', type: 'UsuarioCreado', appId: 'ecomarket',
          timestamp: Math.floor(Date.now() / 1000), messageId: String(sent), deliveryMode: 2,
          mandatory: true,
        }, onConfirm);
        sent++;
      }
    }

    channel.on('drain', () => { room = true; send(); });
    channel.on('return', () => reject(new Error('the broker returned a message')));
    channel.on('error', reject);
    send();
  });
  await connection.close();
}

async function consume(url, count, mode) {
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  await channel.prefetch(200);
  let done = 0;
  let finish;
  const finished = new Promise((resolve) => { finish = resolve; });
  const { consumerTag } = await channel.consume('loyalty_queue', (message) => {
    if (done === count) return;
    done++;
    if (mode === 'each') channel.ack(message);
    else if (done % 100 === 0 || done === count) channel.ack(message, true);
    if (done === count) finish();
  });
  await finished;
  await channel.cancel(consumerTag); // a close alone can lose acks: rabbitmq-server issue 10327
  await connection.close();
}

async function main(role, url, count, option = 'each') {
  const body = role === 'publish' ? readFileSync(option) : null;
  const started = performance.now();
  if (role === 'publish') await publish(url, Number(count), body);
  else await consume(url, Number(count), option);
  console.log((performance.now() - started) / 1000);
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});
