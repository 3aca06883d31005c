# Publishes one event: ruby publish.rb [TYPE] [JSON]
require "bunny"

type = ARGV.fetch(0, "user.updated")
body = ARGV.fetch(1, '{"id": 42}')

connection = Bunny.new(ENV.fetch("UNSTALE_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f"))
connection.start
begin
  channel = connection.create_channel
  channel.confirm_select
  exchange = channel.topic("events", passive: true)
  returned = nil
  exchange.on_return { |info, _properties, _body| returned = info.reply_text }
  exchange.publish(body, routing_key: type, content_type: "application/json", persistent: true, mandatory: true)
  abort "#{type} was not taken by the broker" unless channel.wait_for_confirms
  abort "#{type} was returned: #{returned}" if returned # a return comes before its confirm
ensure
  connection.close
end
