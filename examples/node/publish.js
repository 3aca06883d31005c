// Publishes one event: node publish.js [TYPE] [JSON]
import amqp from "amqplib";

const [type = "user.updated", body = '{"id": 42}'] = process.argv.slice(2);
const url = process.env.UNSTALE_AMQP_URL ?? "amqp://guest:guest@127.0.0.1:5672/%2f";

const connection = await amqp.connect(url);
try {
  const channel = await connection.createConfirmChannel();
  let returned;
  channel.on("return", (message) => (returned = message));
  channel.publish("events", type, Buffer.from(body), {
    contentType: "application/json",
    persistent: true,
    mandatory: true,
  });
  await channel.waitForConfirms(); // a return comes before its confirm
  if (returned) throw new Error(`${type} was returned: ${returned.fields.replyText}`);
} finally {
  await connection.close();
}
