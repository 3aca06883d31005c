// What a team writes by hand: one event, one key, every delivery acknowledged once Redis has answered. ioredis sends what is asked for in one
// turn of the event loop together.
import amqp from 'amqplib';
import { Redis } from 'ioredis';

const redis = new Redis(process.env.REDIS_URL, { enableAutoPipelining: true });
const connection = await amqp.connect(process.env.AMQP_URL);
const channel = await connection.createChannel();
await channel.prefetch(1000);
await channel.consume(process.env.QUEUE, async (message) => {
  const event = JSON.parse(message.content);
  await redis.unlink(`user:${event.data.id}`);
  channel.ack(message);
});

process.on('SIGTERM', () => process.exit(0));
