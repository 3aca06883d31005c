<?php
// Publishes one event: php publish.php [TYPE] [JSON]
// Composer: require 'vendor/autoload.php'; Debian's php-amqplib: the line below.
require 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;

$type = $argv[1] ?? 'user.updated';
$body = $argv[2] ?? '{"id": 42}';
$url = parse_url(getenv('UNSTALE_AMQP_URL') ?: 'amqp://guest:guest@127.0.0.1:5672/%2f');

$connection = new AMQPStreamConnection(
    $url['host'],
    $url['port'] ?? 5672,
    rawurldecode($url['user'] ?? 'guest'),
    rawurldecode($url['pass'] ?? 'guest'),
    rawurldecode(substr($url['path'] ?? '/%2f', 1)),
);
$channel = $connection->channel();
$channel->confirm_select();
$problem = null;
$channel->set_return_listener(function ($code, $text) use (&$problem) {
    $problem = "returned: $text";
});
$channel->set_nack_handler(function () use (&$problem) {
    $problem = 'not taken by the broker';
});

$message = new AMQPMessage($body, [
    'content_type' => 'application/json',
    'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
]);
$channel->basic_publish($message, 'events', $type, true);
$channel->wait_for_pending_acks_returns(10);
$connection->close();

if ($problem !== null) {
    fwrite(STDERR, "$type was $problem\n");
    exit(1);
}
