import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.ConnectionFactory;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.atomic.AtomicReference;

/** Publishes one event: java Publish.java [TYPE] [JSON] */
public class Publish {
    public static void main(String[] args) throws Exception {
        var type = args.length > 0 ? args[0] : "user.updated";
        var body = args.length > 1 ? args[1] : "{\"id\": 42}";
        var factory = new ConnectionFactory();
        factory.setUri(System.getenv().getOrDefault("UNSTALE_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f"));

        try (var connection = factory.newConnection(); var channel = connection.createChannel()) {
            var returned = new AtomicReference<String>();
            channel.addReturnListener(message -> returned.set(message.getReplyText()));
            channel.confirmSelect();
            var properties = new AMQP.BasicProperties.Builder().contentType("application/json").deliveryMode(2).build();
            channel.basicPublish("events", type, true, properties, body.getBytes(StandardCharsets.UTF_8));
            channel.waitForConfirmsOrDie(10_000); // a return comes before its confirm
            if (returned.get() != null) {
                throw new IllegalStateException(type + " was returned: " + returned.get());
            }
        }
    }
}
