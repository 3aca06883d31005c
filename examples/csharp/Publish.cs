// Publishes one event: dotnet run -- [TYPE] [JSON]
using System.Text;
using RabbitMQ.Client;
using RabbitMQ.Client.Exceptions;

var type = args.ElementAtOrDefault(0) ?? "user.updated";
var body = args.ElementAtOrDefault(1) ?? """{"id": 42}""";
var url = Environment.GetEnvironmentVariable("UNSTALE_AMQP_URL") ?? "amqp://guest:guest@127.0.0.1:5672/%2f";

var factory = new ConnectionFactory { Uri = new Uri(url) };
await using var connection = await factory.CreateConnectionAsync();
await using var channel = await connection.CreateChannelAsync(
    new CreateChannelOptions(publisherConfirmationsEnabled: true, publisherConfirmationTrackingEnabled: true));
var properties = new BasicProperties { ContentType = "application/json", Persistent = true };
try
{
    // With confirmation tracking this returns once the broker has confirmed, and throws where it returned or refused.
    await channel.BasicPublishAsync("events", type, mandatory: true, properties, Encoding.UTF8.GetBytes(body));
}
catch (PublishException e)
{
    Console.Error.WriteLine(e.IsReturn ? $"{type} was returned: no queue is bound to it" : $"{type} was not taken by the broker");
    return 1;
}
return 0;
